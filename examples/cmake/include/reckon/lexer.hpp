// Text to tokens.
#pragma once
#include <string>
#include <vector>

#include "reckon/token.hpp"

namespace reckon {

// The last token is always Kind::end. Throws Error at a character that begins no token.
std::vector<Token> tokens_of(const std::string& text);

}  // namespace reckon
