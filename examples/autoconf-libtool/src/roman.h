/* Roman numerals from 1 to 3999. */
#ifndef ROMAN_H
#define ROMAN_H

#define ROMAN_ROOM 16

/* Writes `value` into `out`; 0 when it is out of range. */
int to_roman(int value, char out[ROMAN_ROOM]);
/* The value of a numeral, 0 when it is none. */
int from_roman(const char *text);
/* Whether the text is a numeral in its shortest form. */
int is_roman(const char *text);
#endif
