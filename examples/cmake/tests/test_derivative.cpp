#include "check.hpp"
#include "reckon/session.hpp"

int main() {
  reckon::Session session;
  const char* pairs[][2] = {{"diff(3 * x ^ 2, x)", "6 * x"}, {"diff(sin(x), x)", "cos(x)"}, {"diff(y, x)", "0"},
                            {"diff(exp(2 * x), x)", "2 * exp(2 * x)"}, {"diff(ln(x), x)", "1 / x"}};
  for (const auto& pair : pairs) CHECK_EQUAL(session.answer(pair[0]), pair[1]);
  return failures;
}
