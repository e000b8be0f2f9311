#include "check.hpp"
#include "reckon/error.hpp"
#include "reckon/lexer.hpp"

int main() {
  const auto tokens = reckon::tokens_of("x1 = 2.5e1*(y)");
  CHECK_EQUAL(tokens.size(), 8u);
  CHECK_EQUAL(tokens[0].text, "x1");
  CHECK_EQUAL(tokens[2].number, 25.0);
  CHECK_EQUAL(tokens[7].column, 14u);
  try {
    reckon::tokens_of("1 $ 2");
    CHECK_EQUAL(std::string("no error"), "an error");
  } catch (const reckon::Error& error) {
    CHECK_EQUAL(error.column(), 2u);
    CHECK_EQUAL(reckon::point_at("1 $ 2", error), "1 $ 2\n  ^ cannot read '$'");
  }
  return failures;
}
