/* Vectors of floats as wide as the processor has them, and the few functions of them that attention needs.

   The vector types are those that GCC and clang share. What these cannot say (the greater of two, a table held in a
   register) is said by the processor's own names where it has them, and spelt out elsewhere. LANES floats make a
   vector; a tile of scores is ROWS queries by COLS vectors of keys: as many as the registers hold beside operands. */

#ifndef REGARD_VECTORS_H
#define REGARD_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLLED _Pragma("clang loop unroll(full)")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif

/* REGARD_NARROW takes the plain path on any processor, so that it can be tested on every one. */
#if defined(__AVX512F__) && !defined(REGARD_NARROW)
#include <immintrin.h>
#define LANES 16
#define ROWS 8
#define COLS 3
#elif defined(__AVX2__) && defined(__FMA__) && !defined(REGARD_NARROW)
#include <immintrin.h>
#define LANES 8
#define ROWS 6
#define COLS 2
#elif defined(__aarch64__) && !defined(REGARD_NARROW)
#define LANES 4
#define ROWS 8
#define COLS 3
#else
#define LANES 4
#define ROWS 4
#define COLS 2
#endif

#define PANEL (COLS * LANES) /* keys of a tile */
#define LOG2_OF_E 1.4426950408889634
#define LN_OF_2 0.6931471805599453

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t floats_bits __attribute__((vector_size(4 * LANES)));
typedef float floats_anywhere __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE floats load(const float *from) { return *(const floats_anywhere *)from; }
INLINE void store(float *to, floats value) { *(floats_anywhere *)to = value; }
INLINE floats all(float value) { return value - (floats){0}; }
INLINE ints all_ints(int32_t value) { return value - (ints){0}; }

/* mask: -1 takes yes, 0 takes no, whatever stands in the other. */
INLINE floats choose(ints mask, floats yes, floats no) { return (floats)(((ints)yes & mask) | ((ints)no & ~mask)); }

INLINE ints lane_numbers(void) {
    ints numbers;
    for (int lane = 0; lane < LANES; lane++) numbers[lane] = lane;
    return numbers;
}

/* `other` where either is no number, so that a NaN there is kept. */
INLINE floats greater_of(floats one, floats other) {
#if LANES == 16
    return (floats)_mm512_max_ps((__m512)one, (__m512)other);
#elif LANES == 8
    return (floats)_mm256_max_ps((__m256)one, (__m256)other);
#else
    return choose(one > other, one, other);
#endif
}

INLINE int any_lane(ints mask) {
    int32_t any = 0;
    for (int lane = 0; lane < LANES; lane++) any |= mask[lane];
    return any != 0;
}

/* One bit for each lane where `one` is greater. */
INLINE uint32_t greater_lanes(floats one, floats other) {
#if LANES == 16
    return _mm512_cmp_ps_mask((__m512)one, (__m512)other, _CMP_GT_OQ);
#elif LANES == 8
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)one, (__m256)other, _CMP_GT_OQ));
#else
    const ints greater = one > other;
    uint32_t lanes = 0;
    for (int lane = 0; lane < LANES; lane++) lanes |= (uint32_t)(greater[lane] & 1) << lane;
    return lanes;
#endif
}

INLINE float greatest_lane(floats value) {
    float greatest = value[0];
    for (int lane = 1; lane < LANES; lane++) greatest = value[lane] > greatest ? value[lane] : greatest;
    return greatest;
}

INLINE double sum_of_lanes(floats value) {
    double sum = 0.0;
    for (int lane = 0; lane < LANES; lane++) sum += value[lane];
    return sum;
}

/* Lanes of two vectors, numbered through: the first halves in turn, the second halves in turn, and all one further. */
#if LANES == 16
#define FIRST_HALVES 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define SECOND_HALVES 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define ONE_FURTHER 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
#elif LANES == 8
#define FIRST_HALVES 0, 8, 1, 9, 2, 10, 3, 11
#define SECOND_HALVES 4, 12, 5, 13, 6, 14, 7, 15
#define ONE_FURTHER 7, 8, 9, 10, 11, 12, 13, 14
#else
#define FIRST_HALVES 0, 4, 1, 5
#define SECOND_HALVES 2, 6, 3, 7
#define ONE_FURTHER 3, 4, 5, 6
#endif
#ifdef __clang__
#define TAKE(one, other, lanes) __builtin_shufflevector(one, other, lanes)
#else
#define TAKE(one, other, lanes) __builtin_shuffle(one, other, (ints){lanes})
#endif

/* Rows become columns: of LANES vectors, the first lanes, the second, and so on. Interleaving each vector with the one
   half a square further, as often as a number of LANES values has bits, moves every value to its place. */
INLINE void transpose(floats *square) {
    floats other[LANES];
    UNROLLED for (int width = 1; width < LANES; width *= 2) {
        UNROLLED for (int row = 0; row < LANES / 2; row++) {
            other[2 * row] = TAKE(square[row], square[row + LANES / 2], FIRST_HALVES);
            other[2 * row + 1] = TAKE(square[row], square[row + LANES / 2], SECOND_HALVES);
        }
        UNROLLED for (int row = 0; row < LANES; row++) square[row] = other[row];
    }
}

/* 2^power = 2^whole (1 + rest), with whole a multiple of 1/STEPS; power in [-126, 127].

   Adding 1.5 2^23 / STEPS rounds to the nearest such multiple and leaves it, times STEPS, in the low bits. The powers
   2^0, 2^(1/STEPS), ... below 2 stand in registers, each less its own number of steps, so that adding the shifted low
   bits makes 2^whole. Coefficients: least greatest relative error on what is left, by reweighted least squares. */
INLINE floats power_of_2(floats power, floats *rest) {
#if LANES == 16 /* 32 steps, in two registers: the polynomial is within 5e-8 */
    const floats shift = all(393216.0f);
    const ints steps = {
        0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0,
        0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6,
    };
    const ints more_steps = {
        0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
        0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3,
    };
    const floats shifted = power + shift, left = power - (shifted - shift);
    const ints step = (ints)_mm512_permutex2var_epi32((__m512i)steps, (__m512i)shifted, (__m512i)more_steps);
    *rest = left * (0.6931573298f + left * 0.2402264974f);
    return (floats)(step + ((ints)shifted << 18));
#elif LANES == 8 /* 8 steps: within 3e-8 */
    const floats shift = all(1572864.0f);
    const ints steps = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
    const floats shifted = power + shift, left = power - (shifted - shift);
    const ints step = (ints)_mm256_permutevar8x32_epi32((__m256i)steps, (__m256i)shifted);
    *rest = left * (0.6931472143f + left * (0.2402576298f + left * 0.05549622179f));
    return (floats)(step + ((ints)shifted << 20));
#else /* whole powers alone: within 2e-8 */
    const floats shift = all(12582912.0f);
    const floats shifted = power + shift, left = power - (shifted - shift);
    floats sum = 0.0013398874f + left * 0.00015353362f;
    sum = 0.05550332471f + left * (0.009618437358f + left * sum);
    *rest = left * (0.6931472029f + left * (0.2402264791f + left * sum));
    return (floats)(((ints)shifted << 23) + 0x3f800000);
#endif
}

/* 2^power within 1.5 units in the last place, and exactly 0 from -126 down; power: at most 127 and at least -126, which
   `at_least_least` makes sure of. The small number taken off at the end is lost on all but the smallest results. */
INLINE floats exp2_of(floats power) {
    floats rest;
    const floats whole = power_of_2(power, &rest);
    return (whole + whole * rest) - 0x1p-126f;
}

INLINE floats at_least_least(floats power) { return greater_of(all(-126.0f), power); }

/* tanh within 3 units in the last place: (e - 1) / (e + 1), e = exp(2 |value|), e - 1 taken without cancellation. */
INLINE floats tanh_of(floats value) {
    const ints sign = (ints)value & all_ints((int32_t)0x80000000u);
    const floats magnitude = (floats)((ints)value ^ sign);
    /* Beyond 2^-40 the quotient is 1; negated, because greater_of keeps NaN. */
    const floats power = -greater_of(all(-40.0f), magnitude * (float)(-2.0 * LOG2_OF_E));
    const floats shift = all(12582912.0f);
    const floats shifted = power + shift, left = power - (shifted - shift);
    const floats whole = (floats)(((ints)shifted << 23) + 0x3f800000);
    floats sum = 0.0013398874f + left * 0.00015353362f;
    sum = 0.05550332471f + left * (0.009618437358f + left * sum);
    const floats rest = left * (0.6931472029f + left * (0.2402264791f + left * sum));
    const floats less_1 = (whole - 1.0f) + whole * rest;
    return (floats)((ints)(less_1 / (less_1 + 2.0f)) | sign);
}

#endif
