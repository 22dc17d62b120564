"""What is said, what is heard, how loud, and when: the library, without Ray and without a web framework."""
