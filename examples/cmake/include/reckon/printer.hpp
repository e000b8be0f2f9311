// Expressions as text that parses to the same expression, with as few parentheses as that allows.
#pragma once
#include <string>

#include "reckon/ast.hpp"

namespace reckon {

std::string print(const Expression& expression);
std::string print(double value);

}  // namespace reckon
