/* Eight balanced images from a bundle, as PPM files: example BUNDLE */
#include <ddm_rt.h>
#include <stdio.h>

static int write_all(const ddm_rt_images *images) {
    int64_t height = ddm_rt_images_height(images), width = ddm_rt_images_width(images);
    for (int64_t i = 0; i < ddm_rt_images_count(images); i++) {
        char name[32];
        snprintf(name, sizeof name, "%05d.ppm", (int)i);
        FILE *file = fopen(name, "wb");
        if (file == NULL) return 1;
        fprintf(file, "P6\n%d %d\n255\n", (int)width, (int)height);
        fwrite(ddm_rt_images_rgb(images, i), 3, (size_t)(height * width), file);
        if (fclose(file) != 0) return 1;
        printf("%s: top code %d\n", name, (int)ddm_rt_images_top_code(images, i));
    }
    return 0;
}

int main(int count, char **values) {
    ddm_rt_pipeline *pipeline = NULL;
    ddm_rt_request *request = NULL;
    ddm_rt_images *images = NULL;
    if (count != 2) return 2;
    int failed = ddm_rt_pipeline_open(values[1], NULL, &pipeline) != DDM_RT_OK ||
                 ddm_rt_request_create(&request) != DDM_RT_OK ||
                 ddm_rt_request_set_n(request, 8) != DDM_RT_OK ||
                 ddm_rt_request_set_provenance(request, 0) != DDM_RT_OK || /* the files below have no place for it */
                 ddm_rt_generate(pipeline, request, &images) != DDM_RT_OK;
    if (failed) fprintf(stderr, "error: %s\n", ddm_rt_last_error());
    else failed = write_all(images);
    ddm_rt_images_destroy(images); /* null is allowed, wherever it failed */
    ddm_rt_request_destroy(request);
    ddm_rt_pipeline_close(pipeline);
    return failed;
}
