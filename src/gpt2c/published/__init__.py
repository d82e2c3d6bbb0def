"""What was published about GPT-2, as data, and the code that measures it again.

Facts with their sources (`facts`), whether a model gives them (`verify`), and the zero-shot table
of the GPT-2 paper (`zero_shot`).
"""
