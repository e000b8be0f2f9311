/* Shortest ways in a grid of digits, each the price of stepping on it. */
#ifndef PATHS_H
#define PATHS_H

/* The price of the cheapest way from the first to the last cell of `rows` lines of `columns` digits. */
unsigned cheapest(const char *const *grid, unsigned rows, unsigned columns);
#endif
