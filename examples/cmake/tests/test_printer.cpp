#include "check.hpp"
#include "reckon/parser.hpp"
#include "reckon/printer.hpp"

int main() {
  for (const char* text : {"1 + 2 * x", "(1 + 2) * x", "a - (b - c)", "a - b - c", "(a ^ b) ^ c", "a ^ b ^ c", "-x ^ 2", "(-x) ^ 2", "f(x, -1)"})
    CHECK_EQUAL(reckon::print(reckon::parse(text).value), text);
  return failures;
}
