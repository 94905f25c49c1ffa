/* Exponentials and logarithms that a compiler can inline and vectorise: a call of a vector library
 * spills every vector register. Relative errors stay below 3e-7 (log1p_of: 7e-6 of the result).
 *
 * Polynomials of S. Moshier, Cephes Mathematical Library (1989), expf and logf.
 */
#ifndef UARA_NATIVE_MATH_H
#define UARA_NATIVE_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float float_of_bits(int32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline int32_t bits_of_float(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* exp(x); beyond +-80 that of the bound. */
static inline float exp_of(float x) {
    x = x < -80.0f ? -80.0f : x;
    x = x > 80.0f ? 80.0f : x;
    const float n = rintf(x * 1.44269504f);
    const float r = x - n * 0.693147181f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * r * r + r + 1.0f) * float_of_bits(((int32_t)n + 127) << 23);
}

/* log(x) of a normal x > 0. */
static inline float log_of(float x) {
    const int32_t bits = bits_of_float(x), exponent = (bits - 0x3f3504f3) >> 23;
    const float f = float_of_bits(bits - (exponent << 23)) - 1.0f, z = f * f;
    float p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    return f + (p * f * z - 0.5f * z) + (float)exponent * 0.693147181f;
}

/* log(1 + x) of x >= 0, also of small x. */
static inline float log1p_of(float x) {
    const float series = x * (1.0f - x * (0.5f - x * (0.333333333f - x * 0.25f)));
    return x < 0.01f ? series : log_of(1.0f + x);
}

#endif
