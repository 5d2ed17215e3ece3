/* Closes what a header of vectors has opened. */
#undef VEC
#undef LANES
#undef REGISTERS
#undef TARGET
#undef NAME
#ifdef IS_SMALL
#pragma GCC pop_options
#undef IS_SMALL
#undef UNROLL
#undef IS_USUAL
#define UNROLL(times) FE_PRAGMA(GCC unroll times)
#define IS_USUAL(condition) (condition)
#endif
