/* Closes what a header of vectors has opened. */
#undef VEC
#undef LANES
#undef TARGET
#undef NAME
