"""Files of requests and the batches made of them, as OpenAI's clients have them."""
