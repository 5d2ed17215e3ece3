/* Closes what a header of products has opened, up to the vectors that the next one may share. */
#undef GROUP
#undef CELL
#undef ROWS_OF
#undef PRODUCTS_OF_PAIRS
