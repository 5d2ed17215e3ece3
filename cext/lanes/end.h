/* Closes what a header of vectors has opened. */
#undef VEC
#undef LANES
#undef REGISTERS
#undef TARGET
#undef NAME
#ifdef IS_SMALL
#pragma GCC pop_options
#undef IS_SMALL
#endif
