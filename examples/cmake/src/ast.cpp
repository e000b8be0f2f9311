#include "reckon/ast.hpp"

#include <utility>

namespace reckon {
namespace {

template <typename Part>
Expression node(Part part) {
  return std::make_shared<const Node>(Node{std::move(part)});
}

struct Same {
  bool operator()(const Number& a, const Number& b) const { return a.value == b.value; }
  bool operator()(const Name& a, const Name& b) const { return a.text == b.text; }
  bool operator()(const Negative& a, const Negative& b) const { return equal(a.of, b.of); }
  bool operator()(const Binary& a, const Binary& b) const {
    return a.sign == b.sign && equal(a.left, b.left) && equal(a.right, b.right);
  }
  bool operator()(const Call& a, const Call& b) const {
    if (a.function != b.function || a.arguments.size() != b.arguments.size()) return false;
    for (std::size_t i = 0; i < a.arguments.size(); ++i)
      if (!equal(a.arguments[i], b.arguments[i])) return false;
    return true;
  }
  template <typename A, typename B>
  bool operator()(const A&, const B&) const {
    return false;
  }
};

}  // namespace

Expression number(double value) { return node(Number{value}); }
Expression name(std::string text) { return node(Name{std::move(text)}); }
Expression negative(Expression of) { return node(Negative{std::move(of)}); }
Expression binary(char sign, Expression left, Expression right) {
  return node(Binary{sign, std::move(left), std::move(right)});
}
Expression call(std::string function, std::vector<Expression> arguments) {
  return node(Call{std::move(function), std::move(arguments)});
}

bool equal(const Expression& a, const Expression& b) { return std::visit(Same{}, a->is, b->is); }

bool is_number(const Expression& e, double value) {
  const auto* n = std::get_if<Number>(&e->is);
  return n && n->value == value;
}

}  // namespace reckon
