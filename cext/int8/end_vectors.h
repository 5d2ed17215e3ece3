/* Closes what a header of integers has opened. */
#undef LANE
#undef INTS
#undef FLIP
#undef VECTORS
#undef CHUNK_OF
