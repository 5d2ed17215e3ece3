/* Closes what a header of vectors has opened. */
#undef VEC
#undef LANES
#undef REGISTERS
#undef TARGET
#undef NAME
