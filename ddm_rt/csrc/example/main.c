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
    ddm_rt_model *model = NULL;
    ddm_rt_session *session = NULL;
    ddm_rt_request *request = NULL;
    ddm_rt_images *images = NULL;
    ddm_rt_error *error = NULL;
    if (count != 2) return 2;
    if ((error = ddm_rt_model_open(values[1], DDM_RT_TERMINATED, NULL, &model)) ||
        (error = ddm_rt_session_open(model, NULL, &session)) || (error = ddm_rt_request_create(&request)) ||
        (error = ddm_rt_request_set_n(request, 8)) ||
        (error = ddm_rt_request_set_provenance(request, 0)) || /* the files below have no place for it */
        (error = ddm_rt_generate(session, request, &images)))
        fprintf(stderr, "error: %s\n", ddm_rt_error_message(error));
    int failed = error != NULL || write_all(images) != 0;
    ddm_rt_error_destroy(error); /* null is allowed, wherever it failed */
    ddm_rt_images_destroy(images);
    ddm_rt_request_destroy(request);
    ddm_rt_session_close(session);
    ddm_rt_model_close(model);
    return failed;
}
