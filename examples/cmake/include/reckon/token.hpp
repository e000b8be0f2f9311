// What the lexer makes of the text.
#pragma once
#include <cstddef>
#include <string>

namespace reckon {

enum class Kind { number, name, plus, minus, star, slash, caret, open, close, comma, equals, end };

struct Token {
  Kind kind;
  std::string text;
  double number;
  std::size_t column;
};

const char* describe(Kind kind);

}  // namespace reckon
