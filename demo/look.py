"""How the page looks and how it is served: the theme, the style sheet, and the settings of launch()."""

from pathlib import Path

import gradio as gr

from .guard import UPLOAD
from .words import I18N

TABS = 500  # that are remembered, the longest silent one is forgotten first: one takes 0.4 MB before it asks anything
SANS = ["-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Liberation Sans", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SF Mono", "Menlo", "Consolas", "Liberation Mono", "monospace"]

PAPER, PANEL, INK, QUIET, LINE = "#faf8f4", "#ffffff", "#1d1b18", "#68635a", "#e2ddd2"
ACCENT, ACCENT_DEEP, ACCENT_SOFT = "#b5411a", "#963413", "#f6e6dd"
DARK_PAPER, DARK_PANEL, DARK_INK, DARK_QUIET, DARK_LINE = "#141312", "#1d1b19", "#edeae3", "#a8a195", "#37332e"
DARK_ACCENT, DARK_ACCENT_DEEP, DARK_ACCENT_SOFT = "#ff8a57", "#ffa27a", "#3a241a"


def theme() -> gr.Theme:
    """System fonts, warm paper, one accent; light and dark."""
    return gr.themes.Base(font=SANS, font_mono=MONO, radius_size="sm", text_size="md").set(
        body_background_fill=PAPER,
        body_background_fill_dark=DARK_PAPER,
        body_text_color=INK,
        body_text_color_dark=DARK_INK,
        body_text_color_subdued=QUIET,
        body_text_color_subdued_dark=DARK_QUIET,
        background_fill_primary=PANEL,
        background_fill_primary_dark=DARK_PANEL,
        background_fill_secondary=PAPER,
        background_fill_secondary_dark=DARK_PAPER,
        border_color_primary=LINE,
        border_color_primary_dark=DARK_LINE,
        border_color_accent=ACCENT,
        border_color_accent_dark=DARK_ACCENT,
        color_accent=ACCENT,
        color_accent_soft=ACCENT_SOFT,
        color_accent_soft_dark=DARK_ACCENT_SOFT,
        link_text_color=ACCENT,
        link_text_color_dark=DARK_ACCENT,
        block_background_fill=PANEL,
        block_background_fill_dark=DARK_PANEL,
        block_border_color=LINE,
        block_border_color_dark=DARK_LINE,
        block_label_text_color=QUIET,
        block_label_text_color_dark=DARK_QUIET,
        block_label_background_fill=PANEL,
        block_label_background_fill_dark=DARK_PANEL,
        block_title_text_color=INK,
        block_title_text_color_dark=DARK_INK,
        block_info_text_color=QUIET,
        block_info_text_color_dark=DARK_QUIET,
        block_shadow="none",
        input_background_fill=PANEL,
        input_background_fill_dark=DARK_PANEL,
        input_border_color=LINE,
        input_border_color_dark=DARK_LINE,
        input_border_color_focus=ACCENT,
        input_border_color_focus_dark=DARK_ACCENT,
        input_placeholder_color=QUIET,
        input_placeholder_color_dark=DARK_QUIET,
        button_primary_background_fill=ACCENT,
        button_primary_background_fill_dark=DARK_ACCENT,
        button_primary_background_fill_hover=ACCENT_DEEP,
        button_primary_background_fill_hover_dark=DARK_ACCENT_DEEP,
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark=DARK_PAPER,
        button_primary_border_color=ACCENT,
        button_primary_border_color_dark=DARK_ACCENT,
        button_secondary_background_fill=PANEL,
        button_secondary_background_fill_dark=DARK_PANEL,
        button_secondary_background_fill_hover=PAPER,
        button_secondary_background_fill_hover_dark=DARK_LINE,
        button_secondary_border_color=LINE,
        button_secondary_border_color_dark=DARK_LINE,
        button_secondary_text_color=INK,
        button_secondary_text_color_dark=DARK_INK,
        slider_color=ACCENT,
        slider_color_dark=DARK_ACCENT,
        checkbox_background_color_selected=ACCENT,
        checkbox_background_color_selected_dark=DARK_ACCENT,
        checkbox_border_color_selected=ACCENT,
        checkbox_border_color_selected_dark=DARK_ACCENT,
        checkbox_label_background_fill=PANEL,
        checkbox_label_background_fill_dark=DARK_PANEL,
        loader_color=ACCENT,
        loader_color_dark=DARK_ACCENT,
    )


def launching(share: bool = False) -> dict:
    """Settings of `launch()`: nothing leaves the machine, nothing of a visitor is kept or shown to another."""
    return {
        "theme": theme(),
        "i18n": I18N,
        "css_paths": sorted(Path(__file__).parent.glob("*.css")),
        "show_error": False,
        "max_file_size": UPLOAD,
        "allowed_paths": [],
        "blocked_paths": [],
        "enable_monitoring": False,
        "state_session_capacity": TABS,
        "strict_cors": True,
        "run_history": False,
        "footer_links": ["api", "settings"],
        "favicon_path": None,
        "share": share,
        "ssr_mode": False,  # a second server in front would send pages without our headers
    }
