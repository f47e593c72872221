#ifndef DDM_SHA256_H
#define DDM_SHA256_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The SHA-256 of `size` bytes (FIPS 180-4), as 64 lower-case hexadecimal digits and a null. */
void sha256_hex(const void *data, size_t size, char hex[65]);

/* The same of data that comes in parts: begin, add any number of them, end. */
typedef struct sha256_state {
    uint32_t words[8];
    uint64_t size;
    uint8_t rest[64]; /* what doesn't fill a block yet */
} sha256_state;

void sha256_begin(sha256_state *state);
void sha256_add(sha256_state *state, const void *data, size_t size);
void sha256_end(sha256_state *state, char hex[65]);

#ifdef __cplusplus
}
#endif

#endif
