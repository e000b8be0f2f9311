// The functions that the language knows.
#pragma once
#include <functional>
#include <string>
#include <vector>

namespace reckon {

struct Builtin {
  std::size_t arity;
  std::function<double(const std::vector<double>&)> apply;
};

// nullptr when there is none of that name.
const Builtin* builtin(const std::string& name);

}  // namespace reckon
