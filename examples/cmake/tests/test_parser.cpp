#include "check.hpp"
#include "reckon/error.hpp"
#include "reckon/parser.hpp"

using namespace reckon;

int main() {
  const auto x = name("x");
  CHECK_EQUAL(equal(parse("1 + 2 * x").value, binary('+', number(1), binary('*', number(2), x))), true);
  CHECK_EQUAL(equal(parse("-x ^ 2").value, negative(binary('^', x, number(2)))), true);
  CHECK_EQUAL(equal(parse("2 ^ 3 ^ x").value, binary('^', number(2), binary('^', number(3), x))), true);
  CHECK_EQUAL(equal(parse("max(x, 1)").value, call("max", {x, number(1)})), true);
  CHECK_EQUAL(parse("y = x").target.value_or(""), "y");
  try {
    parse("(1 + 2");
    CHECK_EQUAL(std::string("no error"), "an error");
  } catch (const Error& error) {
    CHECK_EQUAL(std::string(error.what()), "expected ')', found the end");
  }
  return failures;
}
