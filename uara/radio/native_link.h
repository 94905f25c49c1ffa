/* Bits per second and hertz of an SINR: uara/radio/link.py and uara/radio/mcs.py for compiled code.
 */
#ifndef UARA_NATIVE_LINK_H
#define UARA_NATIVE_LINK_H

#include "native_math.h"

/* The same order as in native_link.py. */
typedef struct {
    float is_mcs;         /* 1: the tables; 0: Shannon's bound */
    float inverse_gap;    /* of Shannon's bound */
    float efficiency_max; /* bit/s/Hz, of Shannon's bound */
    float steps_per_log;  /* of the tables, per unit of the SINR's natural logarithm */
    float first_step;     /* where the tables begin, in steps */
    float last_step;      /* index of their last entry */
} Link;

static inline float shannon_of(float sinr, const Link *link) {
    const float efficiency = log1p_of(sinr * link->inverse_gap) * 1.44269504f;
    return efficiency > link->efficiency_max ? link->efficiency_max : efficiency;
}

static inline float mcs_of(float sinr, const Link *link, const float *restrict table) {
    float step = log_of(sinr) * link->steps_per_log - link->first_step;
    step = step < 0.0f ? 0.0f : step;
    step = step > link->last_step ? link->last_step : step;
    return table[(int32_t)step];
}

/* With `is_mcs` a literal, a loop over links holds no branch. */
static inline __attribute__((always_inline)) float efficiency_of(
    float sinr, const Link *link, const float *restrict table, const int is_mcs) {
    return is_mcs ? mcs_of(sinr, link, table) : shannon_of(sinr, link);
}

#endif
