"""What the doors of language models share: tasks made of their requests, answers made of tasks.

A door says what is asked (`asked`) and how it is written (`forms`); `chats` does all between.
"""
