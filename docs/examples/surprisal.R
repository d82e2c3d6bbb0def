# Adds surprisals to a data frame with a word in each row. Run it with
#   Rscript surprisal.R PYTHON
# where PYTHON is the Python of an environment that has gpt2c, such as .venv/bin/python.
library(reticulate)
use_python(commandArgs(trailingOnly = TRUE)[1], required = TRUE)
gpt2c <- import("gpt2c")
model <- gpt2c$GPT2$from_pretrained() # or a folder, such as "path/to/gpt2"

stimuli <- data.frame(
  item = c(1, 1, 1, 2, 2, 2),
  word = c("The", "old", "king.", "A", "fox", "café."),
  stringsAsFactors = FALSE
)
# as.list: reticulate would turn a vector of one word into a text.
found <- gpt2c$surprisal(
  model, as.list(stimuli$word), by = as.list(stimuli$item), correction = "pimentel"
)
numbers <- found$to_dict()
stimuli[c("surprisal", "corrected", "rank")] <- numbers[c("surprisal", "corrected", "rank")]
print(stimuli)
print(found$metadata[c("model_sha256", "dtype", "arithmetic")])
