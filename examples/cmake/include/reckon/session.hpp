// Lines in, lines out: what a person at the program sees.
#pragma once
#include <string>

#include "reckon/environment.hpp"

namespace reckon {

class Session {
 public:
  // `name = …` remembers and answers with what it stands for, `diff(…, x)` derives, everything else is evaluated. Throws Error.
  std::string answer(const std::string& line);

 private:
  Environment environment_;
};

}  // namespace reckon
