/* Versions that had better be small do without what makes others long. UNROLL(times) before a loop: it becomes so many turns
 * side by side. IS_USUAL(condition): whether code of its own is worth while for what is usual. */
#ifndef FLOWER_EDGE_LANES_SMALL_H
#define FLOWER_EDGE_LANES_SMALL_H

#define FE_PRAGMA(text) _Pragma(#text)
#define UNROLL(times) FE_PRAGMA(GCC unroll times)
#define IS_USUAL(condition) (condition)

#endif
