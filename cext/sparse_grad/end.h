/* Closes what a header of vectors has opened. */
#undef LANE
#undef INTS
#undef VECTORS
#undef VECTORS_OF_ONE
#undef BYTES
#undef BYTES_OF_ONE
#include "lanes/end.h"
