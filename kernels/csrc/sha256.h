#ifndef DDM_SHA256_H
#define DDM_SHA256_H

#include <stddef.h>

/* The SHA-256 of `size` bytes (FIPS 180-4), as 64 lower-case hexadecimal digits and a null. */
void sha256_hex(const void *data, size_t size, char hex[65]);

#endif
