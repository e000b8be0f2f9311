// Symbolic derivatives.
#pragma once
#include <string>

#include "reckon/ast.hpp"

namespace reckon {

// d(expression)/d(variable), simplified. Throws Error at a function it cannot derive.
Expression derivative(const Expression& expression, const std::string& variable);

}  // namespace reckon
