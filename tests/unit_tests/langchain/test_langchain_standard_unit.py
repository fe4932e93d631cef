"""LangChain's own unit tests. None is overridden or skipped by hand."""

from __future__ import annotations

from langchain_tests.unit_tests import ChatModelUnitTests

from safe_integrations.langchain import ChatSafe


class TestChatSafeUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[ChatSafe]:
        return ChatSafe

    @property
    def supports_json_mode(self) -> bool:
        return True
