"""OpenAI's interface: chats, completions, embeddings, models, responses."""
