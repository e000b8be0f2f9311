"""What every part agrees on: the wire, the rule table, the forms of addresses, how a daemon behaves. It does no work itself."""
