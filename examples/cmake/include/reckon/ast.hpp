// Expressions: immutable, shared, so that a derivative may hold parts of what it was made from.
#pragma once
#include <memory>
#include <string>
#include <variant>
#include <vector>

namespace reckon {

struct Node;
using Expression = std::shared_ptr<const Node>;

struct Number { double value; };
struct Name { std::string text; };
struct Negative { Expression of; };
struct Binary { char sign; Expression left, right; };
struct Call { std::string function; std::vector<Expression> arguments; };

struct Node { std::variant<Number, Name, Negative, Binary, Call> is; };

Expression number(double value);
Expression name(std::string text);
Expression negative(Expression of);
Expression binary(char sign, Expression left, Expression right);
Expression call(std::string function, std::vector<Expression> arguments);

// Same shape and same leaves.
bool equal(const Expression& a, const Expression& b);
bool is_number(const Expression& e, double value);

}  // namespace reckon
