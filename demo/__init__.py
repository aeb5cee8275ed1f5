"""The page: what the library answers, drawn. Nothing here knows how transformers lays a model out."""
