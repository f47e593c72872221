/* What a test may ask of the fake driver, beside the driver's own functions. */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include <stddef.h>
#include <stdint.h>

/* Addresses of the fake device. The lower half of each is negative as an int, so that an address which is read as a
 * number is noticed, and so is a number that is read as an address. */
#define FAKE_DEVICE UINT64_C(0x7f0080000000)
#define FAKE_DEVICE_BYTES UINT64_C(0x70000000)

/* Numbers of a launch are sizes: the fake refuses negative ones and those from here on. */
#define FAKE_MAX_NUMBER (1 << 20)

enum { FAKE_MAX_PARAMETERS = 64 };

typedef struct fake_launch {
    size_t count;
    size_t bytes[FAKE_MAX_PARAMETERS]; /* as the PTX declares */
    uint64_t value[FAKE_MAX_PARAMETERS];
    unsigned grid[3];
    unsigned block;
    unsigned shared_bytes;
    void *stream;
} fake_launch;

/* A device of this compute capability (10 * major + minor) with a current context, and nothing loaded. */
void fake_reset(int capability);
void fake_drop_context(void);
int fake_modules(void); /* loaded now */
int fake_launches(void);
const fake_launch *fake_last_launch(void);

#endif
