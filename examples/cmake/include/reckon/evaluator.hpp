// The value of an expression. Names are looked up when they are met, as in a spreadsheet.
#pragma once
#include "reckon/ast.hpp"
#include "reckon/environment.hpp"

namespace reckon {

// Throws Error on an unknown name or function, a wrong number of arguments, or names that lead in a circle.
double evaluate(const Expression& expression, const Environment& environment);

}  // namespace reckon
