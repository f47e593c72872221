/* The loader on a fake driver: packs that are right, altered or of another build, and launches of every wrong kind. */
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "ddm_kernels.h"
#include "fake_cuda.h"
#include "manifest.h"
#include "sha256.h"

static const char PTX[] = ".version 8.0\n.target sm_80\n.address_size 64\n"
                          ".visible .entry _kernel(\n"
                          "\t.param .u64 .ptr .global .align 1 _kernel_param_0,\n"
                          "\t.param .u32 _kernel_param_1,\n"
                          "\t.param .u64 .ptr .global .align 1 _kernel_param_2,\n"
                          "\t.param .u64 .ptr .global .align 1 _kernel_param_3,\n"
                          "\t.param .u64 .ptr .global .align 1 _kernel_param_4\n"
                          ")\n.reqntid 128\n{\n"
                          "\tld.param.b64 \t%rd1, [_kernel_param_0];\n"
                          "\tld.param.b32 \t%r1, [_kernel_param_1];\n"
                          "\tld.param.b64 \t%rd2, [_kernel_param_2];\n"
                          "\tret;\n}\n";

#define KERNEL(architecture)                                                                                  \
    "{\"name\": \"" architecture "\", \"op\": \"indicator_attention\", \"entry\": \"_kernel\",\n"              \
    " \"architecture\": \"" architecture "\", \"dtype\": \"fp16\", \"head_dim\": 64, \"branches\": null,\n"    \
    " \"noise\": null, \"tile\": {\"block_m\": 64}, \"num_warps\": 4, \"shared_bytes\": 65536,\n"              \
    " \"alignment\": 16, \"arguments\": [{\"name\": \"q\", \"kind\": \"pointer\", \"bytes\": 8},\n"            \
    "  {\"name\": \"n\", \"kind\": \"i32\", \"bytes\": 4}, {\"name\": \"out\", \"kind\": \"pointer\", \"bytes\": 8}" \
    SCRATCH "],\n \"cubin\": {\"file\": \"k.cubin\", \"sha256\": \"%s\"}}"
#define SCRATCH                                                           \
    ",\n  {\"name\": \"g\", \"kind\": \"scratch\", \"bytes\": 8},"         \
    " {\"name\": \"p\", \"kind\": \"scratch\", \"bytes\": 8}"

static const char *driver;
static char manifest[8192];

static void write_file(const char *path, const char *content, size_t size) {
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL);
    CHECK(fwrite(content, 1, size, file) == size);
    CHECK(fclose(file) == 0);
}

/* The pack in the current folder, whose manifest has `from` replaced by `to`. */
static ddm_status open_altered(const char *from, const char *to, ddm_pack **pack) {
    char altered[sizeof manifest + 256];
    const char *at = strstr(manifest, from);
    CHECK(at != NULL && strlen(manifest) + strlen(to) < sizeof altered);
    int size = snprintf(altered, sizeof altered, "%.*s%s%s", (int)(at - manifest), manifest, to, at + strlen(from));
    write_file("manifest.json", altered, (size_t)size);
    ddm_status status = ddm_pack_open(".", driver, pack);
    write_file("manifest.json", manifest, strlen(manifest));
    return status;
}

static ddm_pack *open_pack(void) {
    ddm_pack *pack = NULL;
    CHECK(ddm_pack_open(".", driver, &pack) == DDM_OK);
    return pack;
}

static ddm_kernel *load(ddm_pack *pack) {
    const ddm_request request = {.op = "indicator_attention", .dtype = "fp16", .head_dim = 64};
    ddm_kernel *kernel = NULL;
    CHECK(ddm_kernel_load(pack, &request, &kernel) == DDM_OK);
    return kernel;
}

static const uint32_t GRID[3] = {3, 2, 1};
#define GOOD {ddm_pointer(FAKE_DEVICE), ddm_i32(77), ddm_pointer(FAKE_DEVICE + 256)}

static void test_a_launch_passes_what_the_ptx_declares(void) {
    fake_reset(80);
    ddm_pack *pack = open_pack();
    ddm_kernel *kernel = load(pack);
    const ddm_argument arguments[] = GOOD;
    int stream = 0;
    CHECK(ddm_pack_size(pack) == 2 && strcmp(ddm_pack_name(pack, 0), "sm_80") == 0 && ddm_pack_name(pack, 2) == NULL);
    CHECK(ddm_kernel_tile(kernel, "block_m") == 64 && ddm_kernel_tile(kernel, "block") == 0);
    CHECK(ddm_kernel_argument_count(kernel) == 3 && ddm_kernel_argument_kind(kernel, 1) == DDM_I32);
    CHECK(ddm_kernel_launch(kernel, GRID, &stream, arguments, 3) == DDM_OK);
    const fake_launch *last = fake_last_launch();
    CHECK(last->count == 5 && last->bytes[1] == 4 && last->bytes[4] == 8);
    CHECK(last->value[0] == FAKE_DEVICE && last->value[1] == 77 && last->value[2] == FAKE_DEVICE + 256);
    CHECK(last->value[3] == 0 && last->value[4] == 0);
    CHECK(last->grid[0] == 3 && last->grid[1] == 2 && last->grid[2] == 1 && last->block == 128);
    CHECK(last->shared_bytes == 65536 && last->stream == &stream);
    ddm_kernel_unload(kernel);
    CHECK(fake_modules() == 0);
    ddm_pack_close(pack);
}

static void test_wrong_launches_never_reach_the_driver(void) {
    fake_reset(80);
    ddm_pack *pack = open_pack();
    ddm_kernel *kernel = load(pack);
    const ddm_argument swapped[] = {ddm_i32(77), ddm_pointer(FAKE_DEVICE), ddm_pointer(FAKE_DEVICE)};
    const ddm_argument crooked[] = {ddm_pointer(FAKE_DEVICE + 8), ddm_i32(77), ddm_pointer(FAKE_DEVICE)};
    const ddm_argument scratch[] = GOOD;
    const uint32_t empty[3] = {1, 0, 1};
    CHECK(ddm_kernel_launch(kernel, GRID, NULL, swapped, 3) == DDM_ERROR_ARGUMENT);
    CHECK(strstr(ddm_last_error(), "argument 0 is a i32, expected a pointer") != NULL);
    CHECK(ddm_kernel_launch(kernel, GRID, NULL, crooked, 3) == DDM_ERROR_ARGUMENT);
    CHECK(strstr(ddm_last_error(), "not aligned to 16") != NULL);
    CHECK(ddm_kernel_launch(kernel, GRID, NULL, scratch, 2) == DDM_ERROR_ARGUMENT);
    CHECK(strstr(ddm_last_error(), "takes 3 arguments, 2 were given") != NULL);
    CHECK(ddm_kernel_launch(kernel, empty, NULL, scratch, 3) == DDM_ERROR_ARGUMENT);
    CHECK(ddm_kernel_launch(NULL, GRID, NULL, scratch, 3) == DDM_ERROR_ARGUMENT);
    CHECK(ddm_kernel_launch(kernel, GRID, NULL, NULL, 3) == DDM_ERROR_ARGUMENT);
    CHECK(fake_launches() == 0);
    ddm_kernel_unload(kernel);
    ddm_pack_close(pack);
}

/* A manifest that doesn't belong to its PTX: the fake reads what the PTX declares, and sees it. */
static void test_the_fake_sees_a_manifest_of_another_build(void) {
    static const struct {
        const char *from, *to, *seen;
        int swap;
    } cases[] = {
        {SCRATCH, "", "parameter 3 of 5 is missing", 0},
        {SCRATCH, ",\n  {\"name\": \"g\", \"kind\": \"scratch\", \"bytes\": 8}", "parameter 4 of 5 is missing", 0},
        {"\"name\": \"p\",", "\"name\": \"x\", \"kind\": \"scratch\", \"bytes\": 8}, {\"name\": \"p\",",
         "more than the 5", 0},
        {"\"q\", \"kind\": \"pointer\", \"bytes\": 8},\n  {\"name\": \"n\", \"kind\": \"i32\", \"bytes\": 4}",
         "\"n\", \"kind\": \"i32\", \"bytes\": 4},\n  {\"name\": \"q\", \"kind\": \"pointer\", \"bytes\": 8}",
         "is no address", 1},
        {"\"i32\", \"bytes\": 4", "\"pointer\", \"bytes\": 8", "is no size", 2},
        {"\"num_warps\": 4", "\"num_warps\": 8", "256 threads, the PTX requires 128", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fake_reset(80);
        ddm_pack *pack = NULL;
        CHECK(open_altered(cases[i].from, cases[i].to, &pack) == DDM_OK);
        ddm_kernel *kernel = load(pack);
        ddm_argument arguments[] = GOOD;
        if (cases[i].swap == 1) {
            ddm_argument first = arguments[0];
            arguments[0] = arguments[1];
            arguments[1] = first;
        } else if (cases[i].swap == 2) {
            arguments[1] = ddm_pointer(FAKE_DEVICE);
        }
        CHECK(ddm_kernel_launch(kernel, GRID, NULL, arguments, 3) == DDM_ERROR_CUDA);
        CHECK(strstr(ddm_last_error(), cases[i].seen) != NULL);
        CHECK(fake_launches() == 0);
        ddm_kernel_unload(kernel);
        ddm_pack_close(pack);
    }
}

/* Triton's own launcher passes a float as a double; read as the PTX declares, that is another number. */
static void test_the_fake_sees_a_double_in_the_place_of_a_number(void) {
    extern int cuModuleLoadData(void **, const void *);
    extern int cuModuleUnload(void *);
    extern int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *,
                              void **, void **);
    fake_reset(80);
    void *module = NULL;
    uint64_t address = FAKE_DEVICE, null = 0;
    double wrong = 0.18;
    void *parameters[] = {&address, &wrong, &address, &null, &null, NULL};
    CHECK(cuModuleLoadData(&module, PTX) == 0);
    CHECK(cuLaunchKernel(module, 1, 1, 1, 128, 1, 1, 0, NULL, parameters, NULL) != 0);
    CHECK(cuModuleUnload(module) == 0);
}

static void test_a_kernel_is_chosen_by_device(void) {
    const ddm_request other = {.op = "indicator_attention", .dtype = "bf16", .head_dim = 64};
    const ddm_request named = {.op = "indicator_attention", .dtype = "fp16", .head_dim = 64, .architecture = "sm_75"};
    const struct {
        int capability;
        ddm_status status;
    } cases[] = {
        {80, DDM_OK},
        {89, DDM_OK},
        {90, DDM_OK},
        {91, DDM_ERROR_NOT_FOUND}, /* sm_90a runs on its own chip alone */
        {75, DDM_ERROR_NOT_FOUND},
        {100, DDM_ERROR_NOT_FOUND},
    };
    ddm_pack *pack = open_pack();
    ddm_kernel *kernel = NULL;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const ddm_request request = {.op = "indicator_attention", .dtype = "fp16", .head_dim = 64};
        fake_reset(cases[i].capability);
        CHECK(ddm_kernel_load(pack, &request, &kernel) == cases[i].status);
        CHECK((kernel == NULL) == (cases[i].status != DDM_OK));
        ddm_kernel_unload(kernel);
    }
    fake_reset(80);
    CHECK(ddm_kernel_load(pack, &other, &kernel) == DDM_ERROR_NOT_FOUND && kernel == NULL);
    CHECK(strstr(ddm_last_error(), "dtype bf16") != NULL);
    CHECK(ddm_kernel_load(pack, &named, &kernel) == DDM_ERROR_NOT_FOUND);
    CHECK(ddm_kernel_load_named(pack, "sm_90", &kernel) == DDM_OK);
    ddm_kernel_unload(kernel);
    CHECK(ddm_kernel_load_named(pack, "sm_70", &kernel) == DDM_ERROR_NOT_FOUND);
    fake_drop_context();
    const ddm_request request = {.op = "indicator_attention", .dtype = "fp16", .head_dim = 64};
    CHECK(ddm_kernel_load(pack, &request, &kernel) == DDM_ERROR_CUDA);
    CHECK(strstr(ddm_last_error(), "no current CUDA context") != NULL);
    ddm_pack_close(pack);
}

static void test_a_missing_driver_is_an_error(void) {
    ddm_pack *pack = NULL;
    CHECK(ddm_pack_open(".", "./no-such-driver.so", &pack) == DDM_ERROR_DRIVER && pack == NULL);
    CHECK(strstr(ddm_last_error(), "no CUDA driver: ./no-such-driver.so") != NULL);
    CHECK(ddm_pack_open(".", "libc.so.6", &pack) == DDM_ERROR_DRIVER && pack == NULL);
    CHECK(strstr(ddm_last_error(), "it has no cuInit") != NULL);
    CHECK(ddm_pack_open("./no-such-pack", driver, &pack) == DDM_ERROR_PACK);
    CHECK(ddm_pack_open(NULL, driver, &pack) == DDM_ERROR_ARGUMENT);
    ddm_pack_close(NULL);
    ddm_kernel_unload(NULL);
}

static void test_an_altered_cubin_is_refused(void) {
    fake_reset(80);
    ddm_pack *pack = open_pack();
    ddm_kernel *kernel = NULL;
    write_file("k.cubin", PTX, sizeof PTX - 2);
    CHECK(ddm_kernel_load_named(pack, "sm_80", &kernel) == DDM_ERROR_PACK && kernel == NULL);
    CHECK(strstr(ddm_last_error(), "k.cubin was altered") != NULL);
    CHECK(unlink("k.cubin") == 0);
    CHECK(ddm_kernel_load_named(pack, "sm_80", &kernel) == DDM_ERROR_PACK);
    write_file("k.cubin", PTX, sizeof PTX - 1);
    ddm_pack_close(pack);
}

static void test_bad_fields_are_named(void) {
    static const char *const cases[][3] = {
        {"\"schema\": 1", "\"schema\": 2", "schema: expected 1"},
        {"\"kernels\": [", "\"kernel\": [", "kernels: expected"},
        {"\"num_warps\": 4", "\"num_warps\": 0", "kernels.0.num_warps"},
        {"\"num_warps\": 4", "\"num_warps\": \"4\"", "kernels.0.num_warps"},
        {"\"num_warps\": 4", "\"num_warps\": 4.0", "isn't whole"},
        {"\"shared_bytes\": 65536", "\"shared_bytes\": -1", "kernels.0.shared_bytes"},
        {"\"head_dim\": 64", "\"head_dim\": true", "kernels.0.head_dim"},
        {"\"noise\": null", "\"noise\": 0", "kernels.0.noise"},
        {"\"alignment\": 16", "\"aligment\": 16", "kernels.0.alignment"},
        {"k.cubin", "../k.cubin", "kernels.0.cubin.file"},
        {"\"sha256\": \"", "\"sha256\": \"x", "kernels.0.cubin.sha256"},
        {"\"kind\": \"i32\", \"bytes\": 4", "\"kind\": \"f64\", \"bytes\": 8", "argument n is a f64 of 8 bytes"},
        {"\"kind\": \"i32\", \"bytes\": 4", "\"kind\": \"i32\", \"bytes\": 8", "argument n is a i32 of 8 bytes"},
        {"\"tile\": {\"block_m\": 64}", "\"tile\": 64", "kernels.0.tile"},
        {"\"entry\": \"_kernel\"", "\"entry\": \"\"", "kernels.0.entry"},
        {"\"kernels\": [", "\"kernels\": [1, ", "kernels.0: expected an object"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ddm_pack *pack = NULL;
        CHECK(open_altered(cases[i][0], cases[i][1], &pack) == DDM_ERROR_PACK && pack == NULL);
        CHECK(strstr(ddm_last_error(), cases[i][2]) != NULL);
    }
}

static ddm_status read_manifest(const char *content, size_t size) {
    char *exact = malloc(size + (size == 0)); /* so that the address sanitizer sees one byte too far */
    ddm_manifest read;
    CHECK(exact != NULL);
    memcpy(exact, content, size);
    ddm_status status = ddm_manifest_read(exact, size, "manifest.json", &read);
    CHECK(status == DDM_OK || (status == DDM_ERROR_PACK && ddm_last_error()[0] != '\0'));
    ddm_manifest_free(&read);
    free(exact);
    return status;
}

static void test_more_arguments_than_a_launch_can_hold(void) {
    static const char one[] = "{\"name\": \"g\", \"kind\": \"scratch\", \"bytes\": 8}, ";
    char many[sizeof manifest + 64 * sizeof one];
    const char *at = strstr(manifest, "{\"name\": \"q\"");
    size_t size = (size_t)(at - manifest);
    memcpy(many, manifest, size);
    for (size_t i = 0; i < 64; i++, size += sizeof one - 1) {
        memcpy(many + size, one, sizeof one - 1);
    }
    memcpy(many + size, at, strlen(at));
    CHECK(read_manifest(many, size + strlen(at)) == DDM_ERROR_PACK);
    CHECK(strstr(ddm_last_error(), "kernels.0.arguments: expected up to 64") != NULL);
}

/* Every beginning of a manifest, and a manifest with any one byte spoilt: an error or a manifest, never more. */
static void test_corrupt_manifests(void) {
    static const char bytes[] = {'\0', '"', '}', '0', '\\', (char)0xff};
    char spoilt[sizeof manifest];
    size_t size = strlen(manifest);
    for (size_t i = 0; i + 1 < size; i++) {
        CHECK(read_manifest(manifest, i) == DDM_ERROR_PACK);
        for (size_t k = 0; k < sizeof bytes; k++) {
            memcpy(spoilt, manifest, size);
            spoilt[i] = bytes[k];
            (void)read_manifest(spoilt, size);
        }
    }
    CHECK(read_manifest(manifest, size) == DDM_OK);
}

int main(int count, char **arguments) {
    char folder[] = "loader-XXXXXX";
    char sha256[65];
    CHECK(count == 2);
    driver = arguments[1];
    CHECK(mkdtemp(folder) != NULL && chdir(folder) == 0);
    sha256_hex(PTX, sizeof PTX - 1, sha256);
    snprintf(manifest, sizeof manifest,
             "{\"schema\": 1, \"triton\": \"0\", \"kernels\": [" KERNEL("sm_80") ",\n" KERNEL("sm_90") "]}\n", sha256,
             sha256);
    write_file("manifest.json", manifest, strlen(manifest));
    write_file("k.cubin", PTX, sizeof PTX - 1);

    test_a_launch_passes_what_the_ptx_declares();
    test_wrong_launches_never_reach_the_driver();
    test_the_fake_sees_a_manifest_of_another_build();
    test_the_fake_sees_a_double_in_the_place_of_a_number();
    test_a_kernel_is_chosen_by_device();
    test_a_missing_driver_is_an_error();
    test_an_altered_cubin_is_refused();
    test_bad_fields_are_named();
    test_more_arguments_than_a_launch_can_hold();
    test_corrupt_manifests();

    CHECK(unlink("manifest.json") == 0 && unlink("k.cubin") == 0 && chdir("..") == 0 && rmdir(folder) == 0);
    return 0;
}
