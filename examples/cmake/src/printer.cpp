#include "reckon/printer.hpp"

#include <sstream>

namespace reckon {
namespace {

int strength(const Expression& e) {
  if (const auto* b = std::get_if<Binary>(&e->is)) return b->sign == '^' ? 4 : b->sign == '*' || b->sign == '/' ? 2 : 1;
  if (std::holds_alternative<Negative>(e->is)) return 3;
  if (const auto* n = std::get_if<Number>(&e->is)) return n->value < 0 ? 3 : 5;
  return 5;
}

std::string inside(const Expression& e, int least) {
  const std::string text = print(e);
  return strength(e) >= least ? text : "(" + text + ")";
}

struct Print {
  std::string operator()(const Number& n) const { return print(n.value); }
  std::string operator()(const Name& n) const { return n.text; }
  std::string operator()(const Negative& n) const { return "-" + inside(n.of, 3); }
  std::string operator()(const Binary& b) const {
    const int own = b.sign == '^' ? 4 : b.sign == '*' || b.sign == '/' ? 2 : 1;
    const bool to_the_right = b.sign == '^';
    return inside(b.left, own + (to_the_right ? 1 : 0)) + " " + b.sign + " " + inside(b.right, own + (to_the_right ? 0 : 1));
  }
  std::string operator()(const Call& c) const {
    std::string text = c.function + "(";
    for (std::size_t i = 0; i < c.arguments.size(); ++i) text += (i ? ", " : "") + print(c.arguments[i]);
    return text + ")";
  }
};

}  // namespace

std::string print(const Expression& expression) { return std::visit(Print{}, expression->is); }

std::string print(double value) {
  std::ostringstream out;
  out.precision(12);
  out << value;
  return out.str();
}

}  // namespace reckon
