"""The description of the API: the table of endpoints, and /openapi.json and /docs from it."""
