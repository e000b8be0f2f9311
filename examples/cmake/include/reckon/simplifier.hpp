// The same expression with less in it: constants folded, neutral elements dropped.
#pragma once
#include "reckon/ast.hpp"

namespace reckon {

Expression simplify(const Expression& expression);

}  // namespace reckon
