#include "check.hpp"
#include "reckon/parser.hpp"
#include "reckon/printer.hpp"
#include "reckon/simplifier.hpp"

int main() {
  const char* pairs[][2] = {{"1 + 2 * 3", "7"}, {"x * 1 + 0", "x"}, {"x - x", "0"}, {"x + x", "2 * x"}, {"--x", "x"},
                            {"x ^ 1", "x"},     {"0 * x", "0"},     {"x * 3", "3 * x"}, {"sin(2 - 1)", "sin(1)"}};
  for (const auto& pair : pairs) CHECK_EQUAL(reckon::print(reckon::simplify(reckon::parse(pair[0]).value)), pair[1]);
  return failures;
}
