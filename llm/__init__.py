"""The methods that touch language: prompt syntax, wish parser, model library, model tree."""
