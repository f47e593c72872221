/* launch_all PACK DRIVER: every kernel of a pack, launched once on the fake driver with arguments of the right kinds.
 * The pack's cubins must be PTX, which is what the fake can read. Prints the number of launches. */
#include "check.h"
#include "ddm_kernels.h"
#include "fake_cuda.h"

static void say(const char *what) {
    fprintf(stderr, "%s: %s\n", what, ddm_last_error());
    exit(1);
}

int main(int count, char **names) {
    const uint32_t grid[3] = {1, 2, 1};
    ddm_pack *pack = NULL;
    CHECK(count == 3);
    fake_reset(80);
    if (ddm_pack_open(names[1], names[2], &pack) != DDM_OK) {
        say(names[1]);
    }
    for (size_t i = 0; i < ddm_pack_size(pack); i++) {
        ddm_kernel *kernel = NULL;
        ddm_argument arguments[FAKE_MAX_PARAMETERS];
        if (ddm_kernel_load_named(pack, ddm_pack_name(pack, i), &kernel) != DDM_OK) {
            say(ddm_pack_name(pack, i));
        }
        size_t given = ddm_kernel_argument_count(kernel);
        for (size_t k = 0; k < given; k++) {
            int pointer = ddm_kernel_argument_kind(kernel, k) == DDM_POINTER;
            arguments[k] = pointer ? ddm_pointer(FAKE_DEVICE + 4096 * k) : ddm_i32((int32_t)k + 1);
        }
        if (ddm_kernel_launch(kernel, grid, NULL, arguments, given) != DDM_OK) {
            say(ddm_pack_name(pack, i));
        }
        for (size_t k = 0; k < given; k++) {
            CHECK(fake_last_launch()->value[k] == (fake_last_launch()->bytes[k] == 8 ? FAKE_DEVICE + 4096 * k : k + 1));
        }
        ddm_kernel_unload(kernel);
    }
    CHECK(fake_modules() == 0);
    printf("%d\n", fake_launches());
    ddm_pack_close(pack);
    return 0;
}
