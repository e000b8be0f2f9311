#include "reckon/parser.hpp"

#include <utility>
#include <vector>

#include "reckon/error.hpp"
#include "reckon/lexer.hpp"

namespace reckon {
namespace {

int precedence(Kind kind) {
  switch (kind) {
    case Kind::plus:
    case Kind::minus: return 1;
    case Kind::star:
    case Kind::slash: return 2;
    case Kind::caret: return 4;
    default: return 0;
  }
}
constexpr int unary_precedence = 3;  // -a ^ b is -(a ^ b), -a * b is (-a) * b

class Parser {
 public:
  explicit Parser(const std::string& text) : tokens_(tokens_of(text)) {}

  Statement statement() {
    Statement result;
    if (tokens_.size() > 2 && tokens_[0].kind == Kind::name && tokens_[1].kind == Kind::equals) {
      result.target = tokens_[0].text;
      at_ = 2;
    }
    result.value = expression(1);
    take(Kind::end);
    return result;
  }

 private:
  const Token& next() const { return tokens_[at_]; }

  Token take(Kind kind) {
    if (next().kind != kind) throw Error(next().column, std::string("expected ") + describe(kind) + ", found " + describe(next().kind));
    return tokens_[at_++];
  }

  bool took(Kind kind) {
    if (next().kind != kind) return false;
    ++at_;
    return true;
  }

  Expression expression(int least) {
    Expression left = operand();
    while (precedence(next().kind) >= least && precedence(next().kind) > 0) {
      const Token sign = tokens_[at_++];
      const bool to_the_right = sign.kind == Kind::caret;
      left = binary(sign.text[0], left, expression(precedence(sign.kind) + (to_the_right ? 0 : 1)));
    }
    return left;
  }

  Expression operand() {
    if (took(Kind::minus)) return negative(expression(unary_precedence));
    if (took(Kind::open)) {
      Expression inner = expression(1);
      take(Kind::close);
      return inner;
    }
    if (next().kind == Kind::number) return number(take(Kind::number).number);
    const Token word = take(Kind::name);
    return took(Kind::open) ? call(word.text, arguments()) : name(word.text);
  }

  std::vector<Expression> arguments() {
    std::vector<Expression> all;
    if (took(Kind::close)) return all;
    do all.push_back(expression(1));
    while (took(Kind::comma));
    take(Kind::close);
    return all;
  }

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
};

}  // namespace

Statement parse(const std::string& text) { return Parser(text).statement(); }

}  // namespace reckon
