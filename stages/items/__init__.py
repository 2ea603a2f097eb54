"""Items of a data set as a model reads them: texts in parts, chat templates, tokens with what is learned of them."""
