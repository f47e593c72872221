/* One error text per thread, for every file of the library. */
#ifndef DDM_ERROR_H
#define DDM_ERROR_H

#include "ddm_kernels.h"

/* Keep the formatted text for ddm_last_error() and return `status`. */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
ddm_status ddm_fail(ddm_status status, const char *format, ...);

#endif
