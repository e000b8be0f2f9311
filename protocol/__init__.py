"""The wire: verbs, fields, limits and the rule table. It knows neither sockets nor scheduling."""
