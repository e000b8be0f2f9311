// Tokens to an expression, by precedence climbing.
#pragma once
#include <optional>
#include <string>

#include "reckon/ast.hpp"

namespace reckon {

struct Statement {
  std::optional<std::string> target;  // set in `target = value`
  Expression value;
};

// Throws Error with the column of the first token that does not fit.
Statement parse(const std::string& text);

}  // namespace reckon
