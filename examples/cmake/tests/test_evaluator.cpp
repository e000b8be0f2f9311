#include "check.hpp"
#include "reckon/error.hpp"
#include "reckon/session.hpp"

int main() {
  reckon::Session session;
  CHECK_EQUAL(session.answer("1 + 2 * 3"), "7");
  CHECK_EQUAL(session.answer("f = r ^ 2"), "f = r ^ 2");
  CHECK_EQUAL(session.answer("r = 4"), "r = 4");
  CHECK_EQUAL(session.answer("sqrt(f) + max(1, 2)"), "6");
  CHECK_EQUAL(session.answer("cos(pi)"), "-1");
  for (const char* text : {"unknown", "sin(1, 2)", "nothing(1)"}) {
    try {
      session.answer(text);
      CHECK_EQUAL(std::string("no error"), text);
    } catch (const reckon::Error&) {
    }
  }
  return failures;
}
